"""Usages of training: functional transforms, scalers, accumulation, second derivatives, optimizers."""

import copy

import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from .table import usage
from .usages import G, X, both

Y = torch.randint(0, 2, (4,), generator=G)


def loss_of(output):
    return nn.functional.cross_entropy(output.float(), Y)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def trained(model, steps=3, **options):
    """A few steps, from one seed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **options)
    model.train()
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = loss_of(model(X))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@both()
def trained_for_some_steps(model):
    """The same losses and the same weights after some steps."""
    return trained(model), model.state_dict()


@both()
def functional_with_other_weights(model):
    """functional_call sees the parameters that it is given, tied or strict, and buffers too."""
    weights = {name: 2 * value for name, value in model.named_parameters()}
    state = weights | {name: value + 1 for name, value in model.named_buffers()}
    return functional_call(model, weights, (X,)), functional_call(model, state, (X,), {}), model(X)


@both()
def gradients_by_transform(model):
    """torch.func.grad of a function of the parameters."""
    weights = {name: value.detach() for name, value in model.named_parameters()}
    return grad(lambda w: loss_of(functional_call(model, w, (X,))))(weights)


def smooth():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


@usage(smooth, X)
def per_sample_gradients(model):
    """vmap over samples and over weights."""
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(w, x):
        return functional_call(model, w, (x[None],)).pow(2).sum()

    stacked = {name: torch.stack([value, 2 * value]) for name, value in weights.items()}
    ensemble = vmap(lambda w: functional_call(model, w, (X,)))(stacked)
    return vmap(grad(loss), (None, 0))(weights, X), ensemble, vmap(model)(torch.stack([X, 2 * X]))


@usage(smooth, X)
def forward_derivative(model):
    """Directional derivatives in forward mode, and Jacobians."""
    return (
        jvp(model, (X,), (torch.ones_like(X),)),
        torch.func.jacrev(model)(X[0]),
        torch.func.hessian(lambda x: model(x).sum())(X[0]),
    )


@usage(smooth, X)
def second_derivative(model):
    """A gradient penalty: backward through a gradient."""
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    slope.norm(dim=1).sub(1).pow(2).mean().backward()
    return slope.detach(), gradients(model), x.grad


@both()
def under_autocast(model):
    """Mixed precision around the call: dtypes, values and gradients."""
    with torch.autocast("cpu", torch.bfloat16):
        output = model(X)
    loss_of(output).backward()
    return output, gradients(model), model(X)


@both()
def with_a_scaler(model):
    """A step of torch.amp.GradScaler."""
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=8.0), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model(X))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=False)
    return loss.detach(), model.state_dict(), scaler.get_scale()


@both()
def accumulated_gradients(model):
    """Gradients of several calls add up; the graph may be kept and used twice; norms are clipped."""
    for part in X.split(2):
        model(part).pow(2).sum().backward()
    loss = loss_of(model(X))
    loss.backward(retain_graph=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    return norm, gradients(model)


@both()
def hooks_on_parameters(model):
    """Hooks on the gradients of parameters, on accumulation and on outputs."""
    seen = []
    model.fc.weight.register_hook(lambda g: seen.append(g.clone()))
    model = yield
    model.head.bias.register_hook(lambda g: g * 2)
    model.head.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    output = model(X)
    output.register_hook(lambda g: seen.append(g))
    seen.clear()
    output.sum().backward()
    return seen, gradients(model)


@both()
def swapped_in_for_an_average(model):
    """An averaged copy, as AveragedModel keeps one."""
    average = torch.optim.swa_utils.AveragedModel(model)
    trained(model, 2)
    average.update_parameters(model)
    average.eval()
    return average(X), model.eval()(X), average.state_dict()


@both()
def anomaly_and_saved_tensors(model):
    """Anomaly detection, and hooks on what backward saves."""
    shapes = []

    def pack(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor.clone()

    with (
        torch.autograd.set_detect_anomaly(True, check_nan=True),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        model(X).sum().backward()
    return gradients(model)


@both()
def checkpointed_from_outside(model):
    """Checkpointing around the model, in train mode with dropout."""
    model.train()
    x = X.clone().requires_grad_()
    torch.manual_seed(3)
    output = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    output.sum().backward()
    return output, x.grad, gradients(model), model.norm.num_batches_tracked


@both()
def in_and_out_of_inference(model):
    """A call in inference mode leaves nothing behind that a later backward stumbles over."""
    with torch.inference_mode():
        first = model(X).clone()
    loss_of(model(X)).backward()
    with torch.no_grad():
        third = model(X)
    return first.is_inference(), third, gradients(model)


@both()
def pruned(model):
    """torch.nn.utils.prune puts a hook on a layer and a mask beside its weight."""
    from torch.nn.utils import prune

    before = model(X)
    prune.l1_unstructured(model.fc, "weight", amount=0.5)
    masked = model(X)
    prune.remove(model.fc, "weight")
    return before, masked, model(X), list(model.state_dict())


@both()
def parametrized_later(model):
    """A parametrization put on, and taken off again."""
    from torch.nn.utils import parametrizations, parametrize

    before = model(X)
    parametrizations.weight_norm(model.head)
    normed = model(X)
    normed.sum().backward()
    parametrize.remove_parametrizations(model.head, "weight")
    return before, normed, model(X), gradients(model)


@both()
def trained_copy_apart(model):
    """A deep copy that is trained leaves the model alone, and learns the same."""
    twin = copy.deepcopy(model)
    return trained(twin), model(X), twin.eval()(X)


@both()
def moved_and_back(model):
    """Casts to and fro, meta and back, and emptied."""
    model.double().half().float()
    first = model(X)
    model.to("meta")
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        nn.init.constant_(tensor.data, 1)
    return first, model(X)
