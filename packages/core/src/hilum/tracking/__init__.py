"""MLflow behind one thin adapter: a run that survives its server, and what it may say of a machine."""
