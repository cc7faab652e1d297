SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

.PHONY: setup
setup: $(VENV)/.installed ## Install fedrecon and its tools into .venv

$(VENV)/.installed: pyproject.toml device_sdk/pyproject.toml device_sdk/hatch_build.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ./device_sdk -e '.[dev]'
	@touch $@
