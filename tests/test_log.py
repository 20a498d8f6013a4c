"""Scalars of a run: a step stands there once, whatever was killed in between."""

import json

from jaxsynth import log


def steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / log.SCALARS).read_text().splitlines()]


def test_lines_past_the_restored_step_are_dropped(tmp_path):
    with log.ScalarLog(tmp_path, 0) as scalars:
        for step in (1, 2, 3):
            scalars.write(step, {"loss": step / 2})
    with (tmp_path / log.SCALARS).open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    with log.ScalarLog(tmp_path, 2) as scalars:
        scalars.write(3, {"loss": 9.0})
    assert steps(tmp_path) == [1, 2, 3]
    assert json.loads((tmp_path / log.SCALARS).read_text().splitlines()[-1])["loss"] == 9.0


def test_what_is_not_finite_is_left_out(tmp_path):
    with log.ScalarLog(tmp_path, 0) as scalars:
        scalars.write(1, {"loss": float("nan"), "rate": 2})
    row = json.loads((tmp_path / log.SCALARS).read_text())
    assert row["rate"] == 2.0 and "loss" not in row


def test_events_can_be_read_back(tmp_path):
    """With TensorBoard's own record format: length, checksum, protobuf."""
    from tensorboardX.proto.event_pb2 import Event

    with log.ScalarLog(tmp_path, 0) as scalars:
        scalars.write(5, {"loss": 0.25})
    data = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    found, at = {}, 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + length
    assert found == {("loss", 5): 0.25}
