"""What the notebooks compute and show: tables, figures, claims, their batch runs and the report of a run."""
