"""Text that people see: terminals and redaction."""
