"""The hub's query language over twins and jobs: grammar, meaning of expressions, and paging.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-query-language.
"""

from simulators.iothub.core.query.engine import run_query

__all__ = ["run_query"]
