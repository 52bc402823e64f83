"""What a graph says on the canvas and not as it is run: which nodes are muted or bypassed."""

from collections.abc import Iterator, Mapping

MUTED = 2
OFF = {MUTED: "muted", 4: "bypassed"}
MOST_NODES = 10_000
# Ends of links in a subgraph: its box, from which they come in and to which they go out.
BOX_IN, BOX_OUT = -10, -20
WRONG_FORM = (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError)


def muted_before(hidden) -> str | None:
    """The muted node that keeps what stands before it from a Dasheng Timeline; None where none does.

    Args:
        hidden: the timeline's hidden inputs: the workflow as the app saves it, and the node's own id, behind those of the
            subgraphs that it is in. Where there is no workflow, or one of another form, it says nothing.
    """
    muted = None
    try:
        for node in _chain(hidden, "timeline"):
            if node["mode"] == MUTED:
                muted = muted or _named(node)
            elif muted or node["mode"] == 0:
                return muted
    except WRONG_FORM:
        pass
    return None


def switched_off(hidden, name: str) -> str | None:
    """Which node, muted or bypassed, gives nothing to the input ``name``, as ``Rain (node 3) is muted``; None where none does."""
    try:
        node = next(_chain(hidden, name))
        return f"{_named(node)} is {OFF[node['mode']]}"
    except WRONG_FORM:
        return None


def _chain(hidden, name: str) -> Iterator[dict]:
    """The node that the input ``name`` comes from, and those before it whose input each would hand on, out of subgraphs too."""
    graph, boxes = hidden.extra_pnginfo["workflow"], []
    subgraphs = {each["id"]: each for each in graph.get("definitions", {}).get("subgraphs", [])}
    *path, own = hidden.unique_id.split(":")
    for place in path:
        boxes.append((graph, _nodes(graph)[place]))
        graph = subgraphs[boxes[-1][1]["type"]]
    node = _nodes(graph)[own]
    # A workflow of somebody else's making can go round in circles.
    for _ in range(MOST_NODES):
        origin, slot = _origin(graph, node, name)
        while origin == BOX_IN:
            name = graph["inputs"][slot]["name"]
            graph, node = boxes.pop()
            origin, slot = _origin(graph, node, name)
        node = _nodes(graph)[str(origin)]
        while node["type"] in subgraphs and node["mode"] == 0:
            boxes.append((graph, node))
            graph = subgraphs[node["type"]]
            origin, slot = [end[1:3] for end in _links(graph) if end[3:] == (BOX_OUT, slot)][0]
            node = _nodes(graph)[str(origin)]
        yield node
        # A bypassed node hands on its first input of the output's type, a timeline the one of that name.
        kind, own = node["outputs"][slot]["type"], node["type"] == "DashengTimeline"
        name = [
            each["name"] for each in node["inputs"] if each["type"] == kind and own <= (each["name"] == "timeline")
        ][0]


def _origin(graph, node, name: str) -> tuple:
    """The node, and its output, from which an input comes."""
    (link,) = [each["link"] for each in node["inputs"] if each["name"] == name]
    return [end[1:3] for end in _links(graph) if end[0] == link][0]


def _links(graph) -> list[tuple]:
    """Id, origin and its output, target and its input of each link: arrays in a workflow, objects in a subgraph."""
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return [tuple(end[key] for key in keys) if isinstance(end, Mapping) else tuple(end[:5]) for end in graph["links"]]


def _named(node) -> str:
    return f"{node.get('title') or node['type']} (node {node['id']})"


def _nodes(graph) -> dict[str, dict]:
    return {str(node["id"]): node for node in graph["nodes"]}
