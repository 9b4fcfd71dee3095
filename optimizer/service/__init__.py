"""The service: searches over HTTP, for browsers and programs (``mergefront serve``).

Start at ``app`` (what is served) and ``server`` (how it is started). ``security`` stands before
every request; ``job_policy`` says what a job that came over HTTP may name; ``searches`` finds and
reads the archives of a directory, ``runner`` starts and stops searches, ``exports`` writes merges;
``views`` makes answers of archives; ``client`` is a Python client. FastAPI and uvicorn are
imported nowhere else (D16).
"""
