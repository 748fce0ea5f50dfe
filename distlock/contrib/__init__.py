"""distlock inside of what others have made: web servers (`distlock.contrib.asgi`, `distlock.contrib.wsgi`)."""
