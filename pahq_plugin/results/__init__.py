"""What was found: values, files, tables and pictures."""
