"""What this distribution registers. Data only."""

DISTRIBUTION = "hilum-infrared"
ENTRIES: dict[str, dict[str, object]] = {}
