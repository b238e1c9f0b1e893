"""The server: live streams over WebSocket, whole files over HTTP, one model for all of them.

app.py            which address does what; runs and stops the server
protocol.py       uvicorn's protocols, mended
service.py        what all connections share: model, engine, limits, metrics
session.py        one live stream
transcription.py  one whole file, with the request form of OpenAI's ``/v1/audio/transcriptions``
refusal.py        the errors that a client is told about
limits.py         the limits of the server
metrics.py        the metrics for Prometheus
page/             the web page

It imports corpus and decoding; never a system.
"""
