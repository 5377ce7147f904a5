"""The `fisher` that stands beside this package: other distributions have a package of that name, and may lie over ours."""

try:
    from fisher import LayerCollection as LayerCollection
except ImportError as error:
    if error.name != "fisher":
        raise
    raise ImportError(
        f"growth: found another package named fisher at {error.path}, expected the one that torchgrove installs; rename it if "
        "it is yours, else pip uninstall fisher, then pip install --force-reinstall --no-deps torchgrove"
    ) from error
