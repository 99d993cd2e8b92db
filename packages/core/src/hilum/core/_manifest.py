"""What this distribution registers. Data only."""

DISTRIBUTION = "hilum"
ENTRIES: dict[str, dict[str, object]] = {
    "objective": {
        "masked": {"target": "hilum.objectives.masked:Masked", "help": "masked autoencoding of patches (MAE)"},
        "simmim": {
            "target": "hilum.objectives.simmim:SimMIM",
            "help": "masked patches as a token, l1 on their pixels (SimMIM)",
        },
        "supervised": {"target": "hilum.objectives.supervised:Supervised", "help": "findings or classes from labels"},
    },
    "encoder": {
        "timm/*": {
            "target": "hilum.encoders.build:timm_encoder",
            "help": "any timm model by its name",
            "requires": ["timm"],
        },
        "monai/*": {
            "target": "hilum.encoders.build:monai_encoder",
            "help": "a MONAI network's encoder",
            "requires": ["monai"],
            "extra": "monai",
        },
    },
    "adapter": {
        "lora": {"target": "hilum.adapters.lora:LoRA", "help": "low-rank updates of chosen projections"},
        "vpt": {"target": "hilum.adapters.vpt:VPT", "help": "visual prompts, shallow or deep"},
    },
    "head": {
        "linear": {"target": "hilum.heads.linear:LinearHead", "help": "one linear layer on the pooled feature"},
        "attentive": {
            "target": "hilum.heads.attentive:AttentiveHead",
            "help": "attention pooling with a learned query",
        },
    },
    "probe": {
        "linear": {"target": "hilum.evaluation.probes:LinearProbe", "help": "logistic regression on frozen features"},
        "knn": {"target": "hilum.evaluation.probes:KNNProbe", "help": "nearest neighbours by cosine"},
        "rankme": {"target": "hilum.evaluation.probes:RankMe", "help": "effective rank of the features (RankMe)"},
    },
    "plan": {
        "shuffle": {"target": "hilum.data.plan:Shuffle", "help": "every sample once an epoch, in a keyed order"},
        "sequential": {"target": "hilum.data.plan:Sequential", "help": "index order"},
    },
    "source": {"study": {"target": "hilum.data.source:StudySource", "help": "images and labels of a study"}},
    "intake": {
        "image-files": {"target": "hilum.data.image_files:ImageFilesIntake", "help": "PNG, JPEG, TIFF; 8 and 16 bit"}
    },
    "verb": {
        "index": {
            "target": "hilum.verbs.intake:index",
            "help": "read an archive into a study: every file accounted for",
        },
        "doctor": {
            "target": "hilum.verbs.doctor:doctor",
            "help": "what a machine or an archive holds; --why explains one file",
        },
        "list": {"target": "hilum.verbs.listing:list_", "help": "show recipes, encoders, objectives, datasets, ..."},
        "fetch": {"target": "hilum.verbs.fetching:fetch", "help": "how to get a public dataset; downloads open ones"},
        "split": {"target": "hilum.verbs.splitting:split", "help": "group-disjoint train, validation and test sets"},
        "pretrain": {"target": "hilum.verbs.training:pretrain", "help": "train an encoder without labels"},
        "finetune": {"target": "hilum.verbs.training:finetune", "help": "adapt an encoder to labels"},
        "resume": {"target": "hilum.verbs.training:resume", "help": "go on with a run that was interrupted"},
        "evaluate": {"target": "hilum.verbs.evaluating:evaluate", "help": "metrics with intervals and an HTML report"},
        "embed": {"target": "hilum.verbs.evaluating:embed", "help": "write a run's features of a study"},
        "predict": {"target": "hilum.verbs.predicting:predict", "help": "scores for a folder of new files"},
        "export": {"target": "hilum.verbs.exporting:export", "help": "ONNX or safetensors, checked against the model"},
        "ui": {"target": "hilum.verbs.doctor:ui", "help": "open a study's MLflow pages"},
    },
}
