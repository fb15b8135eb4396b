"""What all HTML pages share: the template, the look, the drawing of masks."""
