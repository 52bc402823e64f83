"""What a graph says on the canvas and not as it is run: which nodes are muted or bypassed."""

from collections.abc import Iterator, Mapping

MUTED = 2
OFF = {MUTED: "muted", 4: "bypassed"}
MOST_STEPS = 10_000
# Ends of links in a subgraph: its box, from which they come in and to which they go out.
BOX_IN, BOX_OUT = -10, -20
ENDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
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


class _Graph:
    """A graph as an app saves it: its nodes, where its links come from, and the names of a subgraph's inputs."""

    def __init__(self, graph: Mapping):
        self.nodes = {str(node["id"]): node for node in graph["nodes"]}
        # By the link's own id, and of those that leave a subgraph by the output of its box.
        self.origins, self.leaving = {}, {}
        for link in graph["links"]:
            # Arrays in a workflow, objects in a subgraph.
            number, *ends = (link[key] for key in ENDS) if isinstance(link, Mapping) else link[:5]
            origin, slot, target, target_slot = ends
            self.origins[number] = origin, slot
            if target == BOX_OUT:
                self.leaving[target_slot] = origin, slot
        self.inputs = [each["name"] for each in graph.get("inputs", [])]

    def origin(self, node: Mapping, name: str) -> tuple:
        """The node, and its output, from which an input comes."""
        (link,) = [each["link"] for each in node["inputs"] if each["name"] == name]
        return self.origins[link]


def _chain(hidden, name: str) -> Iterator[dict]:
    """The node that the input ``name`` comes from, and those before it whose input each would hand on, out of subgraphs too."""
    workflow, boxes = hidden.extra_pnginfo["workflow"], []
    subgraphs = {each["id"]: _Graph(each) for each in workflow.get("definitions", {}).get("subgraphs", [])}
    graph = _Graph(workflow)
    *path, own = hidden.unique_id.split(":")
    for place in path:
        boxes.append((graph, graph.nodes[place]))
        graph = subgraphs[boxes[-1][1]["type"]]
    origin, slot = graph.origin(graph.nodes[own], name)
    # A workflow of somebody else's making can go round in circles.
    for _ in range(MOST_STEPS):
        if origin == BOX_IN:
            name = graph.inputs[slot]
            graph, box = boxes.pop()
            origin, slot = graph.origin(box, name)
            continue
        node = graph.nodes[str(origin)]
        if node["type"] in subgraphs and node["mode"] == 0:
            boxes.append((graph, node))
            graph = subgraphs[node["type"]]
            origin, slot = graph.leaving[slot]
            continue
        yield node
        # A bypassed node hands on its first input of the output's type, a timeline the one of that name.
        kind = node["outputs"][slot]["type"]
        fits = [each["name"] for each in node["inputs"] if each["type"] == kind]
        name = "timeline" if node["type"] == "DashengTimeline" else fits[0]
        origin, slot = graph.origin(node, name)


def _named(node) -> str:
    return f"{node.get('title') or node['type']} (node {node['id']})"
