"""What happens while there is work of both phases."""
