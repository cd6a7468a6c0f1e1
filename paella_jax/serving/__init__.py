"""The page of `python -m paella_jax.serve`: drawing, editing, and a blind study of two runs.

limits.py says what a visitor may ask for, draw.py asks a pipeline for it, studio.py draws one
request at a time with previews and a stop. store.py keeps votes, tally.py counts them, study.py
chooses what is shown. None of them knows the page: gradio is imported by page.py, draw_tab.py,
study_tab.py and server.py alone, and only when a page is served.
"""
