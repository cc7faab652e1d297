"""How services run: settings, logs, metrics, the gRPC boundary, lifecycle, storage and the `fedrecon` command.

Services import from here; nothing here imports a service. Other rooms join by entry points:
`fedrecon.settings` (name -> subclass of `fedrecon.ops.settings.Settings`) and
`fedrecon.commands` (name -> typer application or function).
"""
