"""The gate that ships knows who wants two experts."""

from pathlib import Path

from deploy.demo.segments import measure_segments


def test_two_skills_get_both_their_experts_and_hardly_anybody_else_gets_two(
    base: Path, demo_experts: Path
) -> None:
    found = measure_segments(4, 8, iter)
    assert found.both_found >= 0.6
    assert found.test_answered_twice <= 0.05
    assert found.strangers_answered_twice <= 0.06
