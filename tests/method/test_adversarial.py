"""Compare the adversarial term with a binary classifier's losses, in float64."""

import torch

from sid_lsg.method.adversarial import adversarial_loss, discriminator_logits, discriminator_loss


def test_losses_and_gradients_equal_those_of_a_classifier() -> None:
    """Compare with the probability sigmoid(D) and the closed forms of its gradients, in float64."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, 5, 2, 4)
    features = [3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    real, generated = (discriminator_logits(f.requires_grad_()) for f in features)
    torch.testing.assert_close(real, features[0].sum(1) / 5)
    p_real, p_generated = (1 / (1 + torch.exp(-d)) for d in (real, generated))
    places = 2 * 4

    loss = discriminator_loss(real, generated)
    expected = -(torch.log(p_real) + torch.log(1 - p_generated)).sum((1, 2)) / places / 2
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    of_real, of_generated = torch.autograd.grad(loss.sum(), features, retain_graph=True)
    for found, closed in ((of_real, p_real - 1), (of_generated, p_generated)):
        wanted = (closed / (2 * places * 5))[:, None].expand(shape)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)

    loss = adversarial_loss(generated)
    expected = -torch.log(p_generated).sum((1, 2)) / places
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(loss.sum(), features[1])
    wanted = ((p_generated - 1) / (places * 5))[:, None].expand(shape)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    assert discriminator_logits(torch.ones(1, 2, 1, 1).bfloat16()).dtype == torch.float32
