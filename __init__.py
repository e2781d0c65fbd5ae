"""Multi-View Consistency: nodes that make generated views of an object agree and turn them into a Gaussian splat."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension ComfyUI asks for. Imported here, not above, so that the library can be used without the host."""
    from .nodes import MultiViewExtension

    return MultiViewExtension()
