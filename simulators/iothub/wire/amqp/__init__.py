"""The AMQP 1.0 codec: values, performatives, messages, frames. Pure.

Sections are those of the OASIS standard, http://docs.oasis-open.org/amqp/core/v1.0/os/.
"""
