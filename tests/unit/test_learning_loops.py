"""What does not depend on the step leaves the loop; what does stays, under names of its own."""

from __future__ import annotations

from onnx import NodeProto, helper

from fedrecon.learning.planning.loops import split_loop


def split(*nodes: NodeProto) -> tuple[list[NodeProto], list[NodeProto]]:
    return split_loop(nodes, {"table"}, {"order": "order", "rate": "rates"}, ["after", "loss"])


def test_what_depends_on_the_step_stays_with_all_that_follows() -> None:
    before, within = split(
        helper.make_node("Neg", ["table"], ["value.0"]),
        helper.make_node("Mul", ["value.0", "frozen"], ["value.1"]),
        helper.make_node("Mul", ["value.1", "rate"], ["after"]),
    )
    assert before == []
    assert [list(node.input) for node in within] == [
        ["step.table"],
        ["step.value.0", "frozen"],
        ["step.value.1", "step.rate"],
    ]
    assert [list(node.output) for node in within] == [["step.value.0"], ["step.value.1"], ["step.after"]]


def test_what_depends_on_frozen_values_alone_leaves_under_its_own_name() -> None:
    before, within = split(
        helper.make_node("Neg", ["frozen"], ["value.0"]),
        helper.make_node("Add", ["table", "value.0"], ["after"]),
    )
    assert [(node.op_type, list(node.output)) for node in before] == [("Neg", ["value.0"])]
    assert list(within[0].input) == ["step.table", "value.0"]


def test_extents_of_the_state_are_those_before_the_loop() -> None:
    before, within = split(
        helper.make_node("Shape", ["table"], ["value.0"], start=0, end=1),
        helper.make_node("ConstantOfShape", ["value.0"], ["value.1"]),
        helper.make_node("Add", ["table", "value.1"], ["after"]),
    )
    assert [node.op_type for node in before] == ["Shape", "ConstantOfShape"]
    assert list(before[0].input) == ["table"]
    assert [node.op_type for node in within] == ["Add"]


def test_extents_of_a_scanned_row_are_those_of_the_whole_less_its_first_axis() -> None:
    before, _ = split(
        helper.make_node("Shape", ["order"], ["value.0"], start=0, end=1),
        helper.make_node("Shape", ["rate"], ["value.1"]),
    )
    found = [
        (list(node.input), {each.name: helper.get_attribute_value(each) for each in node.attribute}) for node in before
    ]
    assert found == [(["order"], {"start": 1, "end": 2}), (["rates"], {"start": 1})]


def test_extents_counted_from_the_end_stay() -> None:
    before, within = split(helper.make_node("Shape", ["order"], ["value.0"], start=-1))
    assert before == []
    assert list(within[0].input) == ["step.order"]


def test_an_output_stays_even_if_it_is_the_same_every_step() -> None:
    before, within = split(helper.make_node("Neg", ["frozen"], ["loss"]))
    assert before == []
    assert list(within[0].output) == ["step.loss"]
