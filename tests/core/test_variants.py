"""From names and ranges on the command line to variants that hold nothing the spec refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import GROUPS, SPACES, Variant
from tuner.core.errors import InvalidInput
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.core.variants import resolve_variant, resolve_variants, settings_at, shown

OWN = """
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from search_spaces import Variant

def make(name, **changes):
    values = {
        "idea": "i", "source": "ours", "fixed": {},
        "searched": {"lr.peak": FloatDistribution(1e-3, 1.0, log=True), "norm.p_max": IntDistribution(2, 8)},
        "default": {"lr.peak": 0.1, "norm.p_max": 2},
    }
    return Variant(name=name, **{**values, **changes})

MINE = make("mine", points={"high": {"lr.peak": 1.0}, "so so": {}})
ODD = make("not a name")
TWIN = make("sgdm")
POINT = make("lpsgdm-imagenet")
WRONG_FIXED = make("wrong-fixed", fixed={"lr.peek": 0.1})
WRONG_RANGE = make("wrong-range", searched={"lr.warmup": FloatDistribution(0.0, 1.0)}, default={"lr.warmup": 0.0})
DEPENDENT = make(
    "dependent",
    searched={"lr.schedule": CategoricalDistribution(("cosine", "linear")), "lr.warmup": FloatDistribution(0.0, 0.5)},
    default={"lr.schedule": "cosine", "lr.warmup": 0.1},
    when={"lr.warmup": ("lr.schedule", ("cosine",))},
)
NUMBER = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Names a variant of the user's own; each test has a module of its own, as modules are imported once."""
    module = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text(OWN)
    (tmp_path / f"{module}_broken.py").write_text("def half(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: f"{module}{name}"


def refused(names: list[str], overrides: list[str]) -> str:
    with pytest.raises(InvalidInput) as caught:
        resolve_variants(names, overrides)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_known_variants_in_the_order_asked() -> None:
    assert resolve_variants(["critical", "sgdm"], []) == (SPACES["critical"], SPACES["sgdm"])


def test_a_group_stands_for_its_variants_each_once() -> None:
    names = [variant.name for variant in resolve_variants(["hybrid", "papers", "sgdm", "baselines"], [])]
    others = [name for name in GROUPS["papers"] if name != "hybrid"]
    assert names == ["hybrid", *others, "sgdm", *(name for name in GROUPS["baselines"] if name != "sgdm")]
    assert resolve_variants(["all", "modern"], []) == tuple(SPACES.values())


def test_a_users_own_variant(own: Callable[[str], str]) -> None:
    assert resolve_variants(["sgdm", own(":MINE")], [])[1].name == "mine"


def test_a_named_point_is_a_variant_beside_its_own(own: Callable[[str], str]) -> None:
    names = ["lpsgdm", "lpsgdm@imagenet", own(":MINE@high")]
    variants = resolve_variants(names, ["lr.schedule=cosine,linear"])
    assert [variant.name for variant in variants] == ["lpsgdm", "lpsgdm-imagenet", "mine-high"]
    assert variants[1].default["norm.p_max"] == 9.0
    assert list(variants[1].enqueued) == ["imagenet"], "its point lies within the changed range"


def test_one_variant_alone(own: Callable[[str], str]) -> None:
    assert resolve_variant("sgdm") == SPACES["sgdm"]
    assert resolve_variant("lpsgdm@imagenet").name == "lpsgdm-imagenet"
    with pytest.raises(InvalidInput, match=r"--variant papers: is a group; name one of lpsgd, lpsgdm"):
        resolve_variant("papers")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adamv", "unknown variant 'adamv': did you mean 'adamw'?"),
        ("qqqqqq", "choose from adamw, all, backward, "),
        ("papes", "unknown variant 'papes': did you mean 'papers'?"),
        ("papers@x", "unknown variant 'papers'"),
        ("lpsgdm@imagnet", "unknown point of lpsgdm 'imagnet': did you mean 'imagenet'?"),
        ("lpsgdm@", "unknown point of lpsgdm '': choose from imagenet"),
        ("sgdm@imagenet", "--variants sgdm@imagenet: sgdm has no named points"),
        ("adamv@imagenet", "unknown variant 'adamv': did you mean 'adamw'?"),
        (
            "no_such_module:X",
            "--variants no_such_module:X: cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (":X", "--variants :X"),
        ("math:", "--variants math:"),
        ("math:pi", "is a float, must be a search_spaces.Variant"),
        pytest.param(".relative:X", "--variants .relative:X"),
    ],
)
def test_a_wrong_name_is_refused(name: str, says: str) -> None:
    assert says in refused([name], [])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (":ABSENT", "ABSENT"),
        (":ODD", "'not a name' must be letters, digits and dashes"),
        (":MINE@so so", "'mine-so so' must be letters, digits and dashes"),
        (":NUMBER", "is a int"),
        (":WRONG_FIXED", "variant wrong-fixed: unknown parameter 'lr.peek': did you mean 'lr.peak'?"),
        (":WRONG_RANGE", "variant wrong-range: lr.warmup = 1.0: must be in [0, 1)"),
        pytest.param("_broken:X", "_broken:X: "),
    ],
)
def test_a_wrong_variant_of_ones_own_is_refused(own: Callable[[str], str], name: str, says: str) -> None:
    assert says in refused([own(name)], [])


def test_two_variants_of_one_name_are_refused(own: Callable[[str], str]) -> None:
    for names in (["sgdm", own(":TWIN")], ["baselines", own(":TWIN")], ["lpsgdm@imagenet", own(":POINT")]):
        assert "two variants have the same name" in refused(names, [])


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("lr.peak=1e-4:0.5:log", FloatDistribution(1e-4, 0.5, log=True)),
        ("lr.peak=1e-4:0.5", FloatDistribution(1e-4, 0.5, log=True)),
        ("lr.peak=0.2:0.5:linear", FloatDistribution(0.2, 0.5)),
        ("lr.peak=0.2:0.2", FloatDistribution(0.2, 0.2, log=True)),
        ("lr.peak=0.1,0.2", CategoricalDistribution((0.1, 0.2))),
        ("lr.warmup=0:0.1", FloatDistribution(0.0, 0.1)),
        ("lr.schedule=linear,one-cycle", CategoricalDistribution(("linear", "one-cycle"))),
        ("sgdm:lr.peak=0.3:0.4", FloatDistribution(0.3, 0.4, log=True)),
    ],
)
def test_ranges_are_replaced(text: str, distribution: object) -> None:
    variant = resolve_variants(["sgdm"], [text])[0]
    name = text.rpartition("sgdm:")[2].partition("=")[0]
    assert variant.searched == {**SPACES["sgdm"].searched, name: distribution}
    assert list(variant.searched) == list(SPACES["sgdm"].searched), "the order says which setting a coordinate is"


def test_integers_stay_integers(own: Callable[[str], str]) -> None:
    variant = resolve_variants([own(":MINE")], ["norm.p_max=3:5"])[0]
    assert variant.searched["norm.p_max"] == IntDistribution(3, 5)
    assert "norm.p_max=3.5:5" in refused([own(":MINE")], ["norm.p_max=3.5:5"])


def test_a_value_is_fixed_and_searched_no_more() -> None:
    variant = resolve_variants(["sgdm"], ["lr.peak=0.3", "lr.schedule=constant"])[0]
    assert variant.fixed["lr.peak"] == 0.3 and variant.fixed["lr.schedule"] == "constant"
    assert set(variant.searched) == set(variant.default) == {"lr.warmup", "momentum.value", "decay.weight"}


def test_everything_may_be_fixed() -> None:
    values = {"lr.peak": "1", "lr.schedule": "linear", "lr.warmup": "0", "momentum.value": "0", "decay.weight": "0"}
    variant = resolve_variants(["sgdm"], [f"{name}={value}" for name, value in values.items()])[0]
    assert not variant.searched
    assert with_settings(OptimizerSpec(), variant.default_settings()).lr.peak == 1.0


def test_a_range_reaches_all_variants_that_search_it_or_the_one_named() -> None:
    names = ["sgdm", "adamw", "lpsgdm", "critical"]
    all_of_them = resolve_variants(names, ["momentum.value=0.5:0.6"])
    changed = {v.name for v in all_of_them if v.searched.get("momentum.value") == FloatDistribution(0.5, 0.6)}
    assert changed == {"sgdm", "adamw", "lpsgdm"}
    one = resolve_variants(names, ["adamw:momentum.value=0.5:0.6"])
    assert {v.name for v in one if v != SPACES[v.name]} == {"adamw"}


def test_the_default_moves_into_the_new_range() -> None:
    for text, value in [("lr.peak=0.2:0.5", 0.2), ("lr.peak=0.01:0.05", 0.05), ("lr.peak=0.3,0.4", 0.3)]:
        assert resolve_variants(["sgdm"], [text])[0].default["lr.peak"] == value


def test_conditions_follow_their_settings(own: Callable[[str], str]) -> None:
    def changed(override: str) -> Variant:
        return resolve_variants([own(":DEPENDENT")], [override])[0]

    assert not changed("lr.warmup=0.1").when
    assert list(changed("lr.schedule=cosine").searched) == ["lr.warmup"]
    assert not changed("lr.schedule=linear").searched
    assert list(changed("lr.schedule=linear,constant").searched) == ["lr.schedule"]
    assert changed("lr.schedule=cosine,constant").when == {"lr.warmup": ("lr.schedule", ("cosine",))}


def test_a_part_of_composed_that_a_range_leaves_out_is_not_tried() -> None:
    forward = resolve_variants(["composed"], ["order.composition=forward"])[0]
    assert list(forward.enqueued) == [name for name in SPACES["composed"].enqueued if "backward" not in name]
    assert not {name for name in forward.searched if name.startswith("order.")}
    assert "lpsgdm" not in resolve_variants(["composed"], ["norm.p_max=10:20"])[0].enqueued


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr.peak", "--space lr.peak: must be"),
        ("lr.peak=", "--space lr.peak=: must be"),
        ("=1:2", "--space =1:2: must be"),
        ("lr.peek=1:2", "unknown parameter in --space 'lr.peek': did you mean 'lr.peak'?"),
        ("sgmd:lr.peak=1:2", "unknown variant in --space 'sgmd': did you mean 'sgdm'?"),
        ("norm.p_max=3:4", "no variant searches norm.p_max; searched are decay.weight"),
        ("lr.peak=1:0.1", "low at most high"),
        ("lr.peak=0:1:log", "above 0"),
        ("lr.peak=1:2:3:4", "the range of sgdm now is 0.01:1:log"),
        ("lr.peak=1:2:cubic", "must be low:high"),
        ("lr.peak=a:b", "must be low:high"),
        ("lr.schedule=1:2", "the range of sgdm now is cosine,linear,constant"),
        ("lr.schedule=cosine,cosin", "unknown lr.schedule 'cosin': did you mean 'cosine'?"),
        ("lr.schedule=cosin", "unknown lr.schedule 'cosin': did you mean 'cosine'?"),
        ("lr.warmup=0.5:1", "variant sgdm: lr.warmup = 1.0: must be in [0, 1)"),
        ("lr.peak=-1:1:linear", "variant sgdm: lr.peak = -1.0: must be above 0"),
        pytest.param("momentum.value=high", "momentum.value = high: must be"),
        pytest.param("lr.peak=nan:1", "lr.peak"),
        pytest.param("lr.peak=0.1:nan", "lr.peak"),
        ("lr.peak=0.1:inf", "lr.peak"),
        ("lr.peak=nan", "lr.peak"),
    ],
)
def test_a_wrong_range_is_refused_by_name(text: str, says: str) -> None:
    assert says in refused(["sgdm"], [text])


@pytest.mark.parametrize("variant", SPACES.values(), ids=list(SPACES))
def test_ranges_as_shown_can_be_typed(variant: Variant) -> None:
    overrides = [f"{name}={shown(distribution)}" for name, distribution in variant.searched.items()]
    assert resolve_variants([variant.name], overrides)[0] == variant.but()


def test_a_point_of_the_cube_leaves_out_what_does_not_exist(own: Callable[[str], str]) -> None:
    variant = resolve_variants([own(":DEPENDENT")], [])[0]
    assert settings_at(variant, np.array([0.0, 1.0])) == {"lr.schedule": "cosine", "lr.warmup": 0.5}
    assert settings_at(variant, np.array([0.9, 1.0])) == {"lr.schedule": "linear"}
