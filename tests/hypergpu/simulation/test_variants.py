"""Fixed settings, and how a scenario is run with them."""

import pytest

from hypergpu.common.config import TrainingConfig
from hypergpu.common.errors import ConfigError, InvalidInput, UnknownName
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import (
    OPTIMIZERS,
    STATIC,
    Static,
    Variant,
    baselines_of,
    split_variants,
    static_variant,
    variants_of,
)

SCENARIO = Scenario.model_validate(
    {"nodes": [{"id": "n", "count": 2}], "policy": "reactive", "config": {"training": {"learning_rate": 0.02}}}
)


def training(text: str) -> TrainingConfig:
    run = static_variant(text).of(SCENARIO, 7)
    assert run.config.orchestrator.policy == "none"
    assert (run.seed, run.config.training.seed) == (7, 7)
    return run.config.training


def test_first_80_takes_forty_steps_and_closes_at_four_fifths() -> None:
    found = training("first-80")
    assert (found.local_steps, found.close_share, found.learning_rate, found.batch_size) == (40, 0.8, 0.02, 64)
    assert (found.first_optimizer.name, found.server_optimizer, found.server_momentum) == ("sgd", "sgd", 0.0)


def test_the_slowest_are_dropped_without_another_change() -> None:
    found = training("drop-slowest")
    assert found.close_share == 0.8
    assert found.model_copy(update={"close_share": 1.0}) == training("static")


def test_every_option_of_a_fixed_setting_reaches_the_configuration() -> None:
    found = training("static:H=30,batch=16,rate=2,close=60,optimizer=fedavgm")
    assert (found.local_steps, found.batch_size, found.learning_rate, found.close_share) == (30, 16, 0.04, 0.6)
    assert (found.server_optimizer, found.server_momentum, found.server_nesterov) == ("sgd", 0.9, False)


def test_a_fixed_setting_sets_the_codecs_and_the_connections_of_transfers() -> None:
    found = static_variant("static:codec=int4,connections=4").of(SCENARIO, 0).config
    assert (found.compression.codecs, found.transfers.connections) == (TransferCodecs("int4", "int8"), 4)
    left = static_variant("static:H=2").of(SCENARIO, 0).config
    assert (left.compression, left.transfers) == (SCENARIO.config.compression, SCENARIO.config.transfers)


def test_diloco_is_adamw_within_and_nesterov_without() -> None:
    found = training("diloco:H=100,rate=2")
    assert (found.local_steps, found.close_share, found.local_optimizer) == (100, 0.8, "adamw")
    assert found.learning_rate == pytest.approx(0.002)  # the scenario's 0.02 is one of SGD
    assert (found.server_learning_rate, found.server_momentum, found.server_nesterov) == (0.7, 0.9, True)
    assert (found.local_state, training("diloco:state=reset").local_state) == ("kept", "reset")


def test_muloco_is_diloco_with_muon_at_its_own_rate() -> None:
    found, other = training("muloco:rate=2"), training("diloco")
    assert (found.local_optimizer, found.learning_rate) == ("muon", 0.04)
    same = {"local_optimizer": "adamw", "learning_rate": other.learning_rate}
    assert found.model_copy(update=same) == other
    alone = training("static:H=40,optimizer=muon")
    assert (alone.local_optimizer, alone.learning_rate, alone.server_momentum) == ("muon", 0.02, 0.0)


def test_a_scenario_of_adamw_keeps_its_rate_for_it_alone() -> None:
    config = TrainingConfig(local_optimizer="adamw", learning_rate=0.004)
    assert Static(optimizer="diloco").apply(config).learning_rate == 0.004
    assert Static(optimizer="sgd", rate=0.5).apply(config).learning_rate == 0.05  # half of the default of SGD


def test_optimisers_leave_nothing_of_the_scenarios_own() -> None:
    config = TrainingConfig(server_optimizer="adam", server_learning_rate=0.5)
    assert Static(optimizer="sgd").apply(config) == TrainingConfig(local_optimizer="sgd")
    for name in OPTIMIZERS:
        assert Static(optimizer=name).apply(config) == Static(optimizer=name).apply(TrainingConfig())
    assert Static().apply(config) == config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("static:H=0", r"H of 'static:H=0' is '0'; expected 1 or more local steps"),
        ("static:H", "H of 'static:H' is nothing"),
        ("static:close=101", "close of .* is '101'; expected a percentage above 0, up to 100"),
        ("static:rate=nan", "rate of .* is 'nan'; expected a factor above 0"),
        ("static:rate=inf", "expected a factor above 0"),
        ("static:batch=1.5", "batch of .* is '1.5'; expected 1 or more samples"),
        ("first-80:H=1,H=2", "gives H twice"),
        ("static:h=1", "unknown option of 'static' 'h' .known: H, P, batch"),
        ("diloco:state=keep", "state of 'diloco:state=keep' is 'keep'; expected reset or kept"),
        ("static:optimizer=fedadm", "did you mean 'fedadam'"),
        ("static:codec=int5", "did you mean 'int4'|did you mean 'int8'"),
        ("static:connections=17", "'17'; expected 1 to 16 connections"),
        ("static:P=17", "'17'; expected 1 to 16 fragments"),
        ("static:overlap=true", "'true'; expected yes or no"),
        ("static:mode=async", "'async'; expected sync, late or buffered"),
        ("first_80", "did you mean 'first-80'"),
        ("static:", "unknown option"),
    ],
)
def test_what_is_no_fixed_setting_is_named(text: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        static_variant(text)


def test_settings_that_do_not_go_together_are_refused_with_their_name() -> None:
    with pytest.raises(ConfigError, match=r"static:H=1,optimizer=diloco: .*more than one local step"):
        static_variant("static:H=1,optimizer=diloco").of(SCENARIO, 0)


def test_an_optimiser_that_the_model_of_convergence_does_not_know_is_refused() -> None:
    modelled = SCENARIO.changed(learning="model")
    assert static_variant("first-80").of(modelled, 0).config.training.local_steps == 40
    with pytest.raises(ConfigError, match="the model of convergence is one of plain SGD"):
        static_variant("fedavgm").of(modelled, 0)


def test_fragments_and_modes_are_those_of_the_configuration() -> None:
    found = training("static:H=40,P=4,overlap=yes")
    assert (found.fragments, found.overlap, found.mode) == (4, True, "sync")
    assert training("static:mode=buffered").is_buffered
    with pytest.raises(ConfigError, match=r"static:P=4,mode=late: .*fragments 4 needs mode sync"):
        static_variant("static:P=4,mode=late").of(SCENARIO, 0)


def test_a_setting_is_shown_as_it_is_given() -> None:
    assert str(Static()) == "static"
    text = "static:H=40,batch=64,rate=2,close=80,optimizer=fedavgm,codec=int8,connections=2,P=4,overlap=yes,mode=late"
    setting = static_variant(text).static
    assert str(setting) == text
    assert static_variant(text).label == text


def test_lists_are_split_between_settings_only() -> None:
    text = "reactive, static:H=40,batch=64 ,first-80,diloco:rate=2,none,"
    assert split_variants(text) == ["reactive", "static:H=40,batch=64", "first-80", "diloco:rate=2", "none"]


def test_policies_take_strategies_and_fixed_settings_do_not() -> None:
    found = variants_of(["none", "reactive", "first-80", "first-80"], ["top_n"])
    assert found == [
        Variant("reactive", "", "top_n"),
        Variant("none", static=STATIC["first-80"], name="first-80"),
    ]


def test_policies_times_strategies() -> None:
    found = variants_of(["none", "reactive"], ["fixed/utility", "top_n"])
    assert found == [Variant("reactive", "fixed", "utility"), Variant("reactive", "", "top_n")]
    assert variants_of(["reactive", "reactive"], ["top_n", "top_n"]) == [Variant("reactive", "", "top_n")]
    with pytest.raises(InvalidInput, match="two strategies for the same thing"):
        variants_of(["reactive"], ["top_n/utility"])
    with pytest.raises(UnknownName, match="did you mean 'reactive'"):
        variants_of(["reactiv"], [])
    with pytest.raises(UnknownName, match="did you mean 'goodput'"):
        variants_of(["reactive"], ["goodpt"])


def test_baselines_are_fixed_settings() -> None:
    assert baselines_of(["none", "first-80", "none"]) == [
        Variant("none"),
        Variant("none", static=STATIC["first-80"], name="first-80"),
    ]
    with pytest.raises(InvalidInput, match="'reactive' is a policy and adapts"):
        baselines_of(["none", "reactive"])
    with pytest.raises(UnknownName, match="did you mean 'first-80'"):
        baselines_of(["first-8"])
    with pytest.raises(InvalidInput, match="no baseline"):
        baselines_of([])
