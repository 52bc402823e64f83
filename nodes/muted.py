"""What a graph says on the canvas and not as it is run: which nodes are muted."""

from collections.abc import Mapping

MUTED = 2


def muted_before(hidden) -> str | None:
    """The muted node that keeps what stands before it from a Dasheng Timeline; None where none does.

    Args:
        hidden: the timeline's hidden inputs: the workflow as the app saves it, and the node's own id, behind those of the
            subgraphs that it is in. Where there is no workflow, or one of another form, it says nothing.
    """
    try:
        return _muted_before(hidden.extra_pnginfo["workflow"], hidden.unique_id)
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
        return None


def _muted_before(workflow, node_id: str) -> str | None:
    graph, (*path, own) = workflow, node_id.split(":")
    for place in path:
        kind = _nodes(graph)[place]["type"]
        graph = next(subgraph for subgraph in workflow["definitions"]["subgraphs"] if subgraph["id"] == kind)
    nodes = _nodes(graph)
    # Arrays in a workflow, objects in a subgraph.
    ends = [(end["id"], end["origin_id"]) if isinstance(end, Mapping) else end[:2] for end in graph["links"]]
    origins, node, muted = dict(ends), nodes[own], None
    # A workflow of somebody else's making can go round in circles.
    for _ in nodes:
        name = "timeline" if node["type"] == "DashengTimeline" else None
        links = [i["link"] for i in node["inputs"] if i["type"] == "CONDITIONING" and name in (None, i["name"])]
        if not links or links[0] is None:
            return None
        node = nodes[str(origins[links[0]])]
        if node["mode"] == MUTED:
            muted = muted or f"{node.get('title') or node['type']} (node {node['id']})"
        elif muted or node["mode"] == 0:
            return muted
    return None


def _nodes(graph) -> dict[str, dict]:
    return {str(node["id"]): node for node in graph["nodes"]}
