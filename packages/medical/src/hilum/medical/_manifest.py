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
    },
    "verb": {
        "demo": {"target": "hilum.medical.demonstration:demo", "help": "the whole road on simulated radiographs"},
        "simulate": {
            "target": "hilum.medical.demonstration:simulate",
            "help": "write a cohort of simulated radiographs",
        },
        "init-study": {"target": "hilum.medical.init_study:init_study", "help": "which start is best for these data?"},
    },
    "intake": {
        "dicom": {
            "target": "hilum.medical.dicom.intake:DicomIntake",
            "help": "DICOM files",
            "requires": ["pydicom"],
            "extra": "medical",
        }
    },
}
