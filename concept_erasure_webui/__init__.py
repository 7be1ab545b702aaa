"""The AUTOMATIC1111 extension: tab, panel, prompt tag, safety profile, routes. Loaded by ``scripts/`` alone.

Only the host's own modules, gradio and the library are imported. Everything is imported when the host loads the script:
later it takes the extension's folder off the search path again.
"""
