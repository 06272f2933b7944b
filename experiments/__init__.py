"""Studies made with metajax, a folder each."""
