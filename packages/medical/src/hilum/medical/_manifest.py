"""What this distribution registers. Data only."""

DISTRIBUTION = "hilum-medical"
ENTRIES: dict[str, dict[str, object]] = {
    "recipe": {
        "medical/mae-cxr-ti": {"target": "recipes/mae-cxr-ti.yaml", "help": "MAE on chest radiographs, ViT-Ti/16"},
        "medical/mae-cxr-s": {"target": "recipes/mae-cxr-s.yaml", "help": "MAE on chest radiographs, ViT-S/16"},
        "medical/mae-cxr-b": {"target": "recipes/mae-cxr-b.yaml", "help": "MAE on chest radiographs, ViT-B/16"},
        "medical/cxr-multilabel": {"target": "recipes/cxr-multilabel.yaml", "help": "fine-tune for several findings"},
        "medical/cxr-linear-probe": {
            "target": "recipes/cxr-linear-probe.yaml",
            "help": "frozen encoder, one linear layer",
        },
        "medical/init-study": {
            "target": "recipes/init-study.yaml",
            "help": "any starts under one budget, paired statistics",
        },
        "medical/demo-cxr": {"target": "recipes/demo-cxr.yaml", "help": "the demo's pretraining (minutes on a CPU)"},
        "medical/demo-cxr-finetune": {"target": "recipes/demo-cxr-finetune.yaml", "help": "the demo's fine-tuning"},
    },
    "dataset": {
        "medical/nih-cxr14": {"target": "hilum.medical.datasets.nih_cxr14:NIHChestXray14", "help": "NIH ChestX-ray14"},
        "medical/chexpert": {"target": "hilum.medical.datasets.chexpert:CheXpert", "help": "CheXpert"},
        "medical/mimic-cxr": {"target": "hilum.medical.datasets.mimic_cxr:MIMICCXR", "help": "MIMIC-CXR 2.1 (DICOM)"},
        "medical/mimic-cxr-jpg": {
            "target": "hilum.medical.datasets.mimic_cxr:MIMICCXRJPG",
            "help": "MIMIC-CXR-JPG 2.1",
        },
        "medical/rsna-pneumonia": {
            "target": "hilum.medical.datasets.rsna_pneumonia:RSNAPneumonia",
            "help": "RSNA Pneumonia Detection Challenge 2018",
        },
        "medical/vindr-cxr": {
            "target": "hilum.medical.datasets.vindr_cxr:VinDrCXR",
            "help": "VinDr-CXR (PhysioNet or Kaggle)",
        },
        "medical/padchest": {"target": "hilum.medical.datasets.padchest:PadChest", "help": "PadChest"},
        "medical/padchest-physician": {
            "target": "hilum.medical.datasets.padchest:PadChestPhysician",
            "help": "PadChest, labels by physicians only",
        },
        "medical/siim-acr": {"target": "hilum.medical.datasets.siim_acr:SIIMACR", "help": "SIIM-ACR Pneumothorax"},
        "medical/covidx": {"target": "hilum.medical.datasets.covidx:COVIDx", "help": "COVIDx CXR"},
        "medical/msd": {"target": "hilum.medical.datasets.msd:MSD", "help": "Medical Segmentation Decathlon"},
        "medical/totalsegmentator": {
            "target": "hilum.medical.datasets.totalsegmentator:TotalSegmentator",
            "help": "TotalSegmentator v2",
        },
        "medical/brats-2021": {"target": "hilum.medical.datasets.brats:BraTS2021", "help": "BraTS 2021"},
        "medical/brats-2023": {"target": "hilum.medical.datasets.brats:BraTS2023", "help": "BraTS 2023"},
        "medical/vqa-rad": {"target": "hilum.medical.datasets.vqa_rad:VQARAD", "help": "VQA-RAD"},
        "medical/slake": {"target": "hilum.medical.datasets.slake:SLAKE", "help": "SLAKE"},
        "medical/pathvqa": {"target": "hilum.medical.datasets.pathvqa:PathVQA", "help": "PathVQA (no pickles)"},
    },
    "verb": {
        "demo": {"target": "hilum.medical.demonstration:demo", "help": "the whole road on simulated radiographs"},
        "volumes": {
            "target": "hilum.medical.volumes.verb:volumes",
            "help": "write a study's volumes and their labels as NIfTI",
            "requires": ["nibabel"],
            "extra": "medical",
        },
        "simulate": {
            "target": "hilum.medical.demonstration:simulate",
            "help": "write a cohort of simulated radiographs",
        },
        "pull": {
            "target": "hilum.medical.pacs.verbs:pull",
            "help": "copy studies from a PACS (DICOMweb, DIMSE)",
            "requires": ["dicomweb_client", "pynetdicom"],
            "extra": "pacs",
        },
        "push": {
            "target": "hilum.medical.pacs.verbs:push",
            "help": "send files to a PACS and read each one back",
            "requires": ["dicomweb_client", "pynetdicom"],
            "extra": "pacs",
        },
        "init-study": {"target": "hilum.medical.init_study:init_study", "help": "which start is best for these data?"},
        "deid": {
            "target": "hilum.medical.deid.verb:deid",
            "help": "de-identified copies of DICOM images (PS3.15 Annex E)",
            "requires": ["pydicom", "scipy"],
            "extra": "medical",
        },
    },
    "intake": {
        "dicom": {
            "target": "hilum.medical.dicom.intake:DicomIntake",
            "help": "DICOM files",
            "requires": ["pydicom"],
            "extra": "medical",
        },
        "nifti": {
            "target": "hilum.medical.nifti:NiftiIntake",
            "help": "NIfTI files",
            "requires": ["nibabel"],
            "extra": "medical",
        },
    },
}
