"""Exchange circuits with EAP-IG and the MIB circuit track, as JSON graphs."""

from pahq_exporters.interchange.graph_json import GraphJson, read_graph_json, write_graph_json

__all__ = ["GraphJson", "read_graph_json", "write_graph_json"]
