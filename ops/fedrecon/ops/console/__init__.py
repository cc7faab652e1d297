"""The operator's console: a small web app that shows tasks and rounds live, and steers them.

A process of its own (`fedrecon console`, and part of `fedrecon up`). It keeps nothing: all that it shows is asked
of the coordinator's Admin service, with the operator's own token, so that Admin's roles and audit hold here, too. Its
pages are plain HTML, CSS and JavaScript modules, served from this package.
"""
