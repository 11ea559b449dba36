"""What a run tells its user: a line while it samples, warnings, and a record for the report."""
