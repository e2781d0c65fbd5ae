"""Scripts that train and judge the demo models. Run them as `python training <name> ...` (see __main__.py)."""
