"""`WS /v1/realtime`: a spoken conversation, in the events of OpenAI's realtime protocol."""

from ttt_jax.serve.realtime.socket import ROUTE

ROUTES = (ROUTE,)
