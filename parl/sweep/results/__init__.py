"""What the cells of a sweep show: numbers with intervals, tables, figures, one page."""
