"""TLS: from the files that the user names to what a listening socket needs."""

from __future__ import annotations

import ssl

from sandwich.config import ServerConfig
from sandwich.errors import ConfigError


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the certificate of `config`; None: plain HTTP.

    Raises ConfigError if a file cannot be used or the certificate is missing.
    """
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile; give the certificate too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        key = f" with --ssl-keyfile {config.ssl_keyfile}" if config.ssl_keyfile else ""
        raise ConfigError(
            f"--ssl-certfile {config.ssl_certfile}{key}: {error}; both must be PEM files "
            "and belong together"
        ) from error
    return context
