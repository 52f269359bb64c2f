import mlx.core as mx

from lmxlab.core.unstack import unstack


def test_the_parts_are_the_slices_and_their_gradient_is_that_of_slices() -> None:
    x, weights = mx.random.normal((5, 2, 3)), mx.random.normal((4, 2, 3))
    assert all(mx.array_equal(part, x[i]) for i, part in enumerate(unstack(x)))

    def of_parts(x: mx.array) -> mx.array:
        return sum((part**2 * weights[i]).sum() for i, part in enumerate(unstack(x)[:4]))  # the last one unused

    expected = 2 * x * mx.concatenate([weights, mx.zeros((1, 2, 3))])
    assert mx.allclose(mx.grad(of_parts)(x), expected)
    assert mx.allclose(mx.compile(mx.grad(of_parts))(x), expected)


def test_the_gradient_of_a_loop_over_the_parts_is_linear_in_their_number() -> None:
    def operations(n: int) -> int:
        sizes = []

        def record(event: dict) -> None:
            if event["type"] == "primitive":
                sizes.extend(out[1][0] if out[1] else 1 for out in event["outputs"])

        def loss(x: mx.array) -> mx.array:
            total = mx.zeros((3,))
            for part in unstack(x):
                total = 0.9 * total + part
            return total.sum()

        mx.export_function(record, mx.grad(loss), mx.zeros((n, 3)))
        return sum(sizes)

    assert operations(64) < 2.5 * operations(32)
