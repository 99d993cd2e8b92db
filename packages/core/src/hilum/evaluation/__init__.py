"""hilum.evaluation: metrics with intervals or refusals, thresholds from validation, comparisons, probes, the report."""
