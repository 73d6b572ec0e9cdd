"""What is done once for all peers of a simulation gives what each would have got by itself, and is bounded."""

from __future__ import annotations

from functools import partial

import torch

from btrain.kernels import quantize_blockwise
from btrain.protocol import reduction
from btrain.protocol.ledger import LedgerState, open_block
from btrain.simulation.sharing import RESULTS_KEPT, SharedWork
from btrain.simulation.soak import draw_case, set_up


def test_a_job_that_says_what_it_is_is_done_once() -> None:
    work, done = SharedWork(), []

    def job(number: int) -> int:
        done.append(number)
        return number * number

    assert [work.run(partial(job, n)) for n in (3, 4, 3, 3)] == [9, 16, 9, 9]
    assert [work.run(lambda: job(3)) for _ in range(2)] == [9, 9]
    assert done == [3, 4, 3, 3]


def test_the_latest_results_are_kept_and_no_more() -> None:
    work, done = SharedWork(), []
    for number in (*range(RESULTS_KEPT + 1), RESULTS_KEPT, 0):
        work.run(partial(done.append, number))
    assert done == [*range(RESULTS_KEPT + 1), 0]


def test_a_small_part_is_opened_once_and_a_large_one_each_time() -> None:
    for numel in (2048, reduction.SMALL_PART_BYTES + 1024):
        data = quantize_blockwise(torch.randn(numel)).to_bytes()
        one, other = reduction.open_part(data, numel), reduction.open_part(data, numel)
        assert one is not None and other is not None
        assert one.to_bytes() == other.to_bytes() == data
        assert (one is other) == (len(data) <= reduction.SMALL_PART_BYTES)
        assert reduction.open_part(b"\x80" + data[1:], numel) is None


def test_peers_at_one_block_share_the_state_that_follows_from_it() -> None:
    case = draw_case(2)
    world = set_up(case, "counted")
    world.run(4, 60_000_000)
    nodes = [world.node(peer) for peer in world.staying]
    states = {node.member.state.head: node.member.state for node in nodes if node is not None}
    assert all(node.member.state is states[node.member.state.head] for node in nodes if node is not None)
    apart = LedgerState.start(world.genesis, world.charter)
    for certified in world.identities[world.staying[0]].disk.blocks:
        apart = apart.advance(open_block(certified.block))
    together = world.origin
    for certified in world.identities[world.staying[0]].disk.blocks:
        together = together.advance(open_block(certified.block))
    assert together == apart and together is not apart
