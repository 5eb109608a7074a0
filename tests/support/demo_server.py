"""Options of a demo server that runs during a test."""

# Without `_frontend`, gradio does not ask for its own page with a time limit of 3 s, which machines under load exceed.
SERVER = {"prevent_thread_lock": True, "quiet": True, "_frontend": False}
