"""What recorded runs tell: reports, causes, plans."""
