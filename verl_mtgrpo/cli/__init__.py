"""The subcommands of ``mtgrpo``: one thin file each."""
