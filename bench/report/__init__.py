"""Result files of one machine -> a page with pictures and a summary."""
