"""What this distribution registers. Data only."""

DISTRIBUTION = "hilum-surgical"
ENTRIES: dict[str, dict[str, object]] = {}
