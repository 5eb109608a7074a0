"""From raw mask values to class indices."""
