"""What this distribution registers. Data only."""

DISTRIBUTION = "hilum-industrial"
ENTRIES: dict[str, dict[str, object]] = {}
