"""The options of several processes; what they do is in tests/test_several_processes.py."""

import jax
import pytest

from experiments import common
from experiments.common import partners
from metajax.errors import ArgumentError

THREE = {"coordinator": "localhost:1234", "processes": 2, "process_id": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (THREE, "coordinator says where a process is, which needs --distributed"),
        ({"distributed": True, "processes": 2}, "coordinator is missing: give coordinator,"),
        (
            {"distributed": True, **THREE, "coordinator": "localhost"},
            "coordinator must be host:port",
        ),
        ({"distributed": True, **THREE, "processes": 0}, "processes must be above zero; got 0"),
        (
            {"distributed": True, **THREE, "process_id": 2},
            "process_id must be from 0 to processes - 1",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        common.DistributedConfig(steps=1, **options)


@pytest.mark.parametrize(
    ("options", "reason", "message"),
    [
        ({}, "coordinator_address should be defined.", "distributed: JAX does not know where"),
        (
            THREE,
            "DEADLINE_EXCEEDED",
            "coordinator: process 1 of 2 found no others at localhost:1234",
        ),
        (THREE, "must be called before any", "distributed: the processes must meet before JAX"),
    ],
)
def test_processes_that_do_not_meet_are_told_which_option(monkeypatch, options, reason, message):
    asked = []

    def initialize(*arguments, **limits):
        assert max(limits.values()) <= (90 if options else 315)  # seconds
        asked.append(arguments)
        raise RuntimeError(reason)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(partners, "meet", lambda *arguments: None)
    before = jax.config.jax_enable_preemption_service
    try:
        with pytest.raises(common.RunError, match=message):
            common.connect(common.DistributedConfig(steps=1, distributed=True, **options))
    finally:
        jax.config.update("jax_enable_preemption_service", before)
    assert asked == [tuple(options.get(name) for name in THREE)]


def test_where_it_ran_is_neither_a_runs_identity_nor_in_its_command():
    config = common.DistributedConfig(steps=1, distributed=True, **THREE)
    assert common.command("a", config) == "python -m a --steps 1"
    assert {"distributed", *THREE} <= config.may_differ
