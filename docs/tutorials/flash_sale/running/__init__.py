"""Starts all processes of the shop, and starts again what dies: what systemd or Kubernetes do in real life."""
