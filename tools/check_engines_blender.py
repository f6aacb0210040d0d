"""What Blender makes of a glTF file, printed for check_engines.py: its meshes, and their bounds in every frame."""

import json
import sys

import numpy

numpy.bool = bool  # the importer of Blender 3.4 uses the old name
import bpy  # noqa: E402


def bounds(o):
    corners = [list(o.matrix_world @ v.co) for v in o.data.vertices]
    return [[low(c[i] for c in corners) for i in range(3)] for low in (min, max)]


def described(o):
    images = [n.image for m in o.data.materials if m for n in m.node_tree.nodes if n.type == "TEX_IMAGE"]
    textures = [list(image.size) for image in images]
    return {"bounds": bounds(o), "triangles": len(o.data.polygons), "uv": len(o.data.uv_layers), "textures": textures}


bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[-1])
scene, frames = bpy.context.scene, {}
meshes = {o.name: described(o) for o in scene.objects if o.type == "MESH"}
moving = [o.animation_data for o in bpy.data.objects if o.animation_data]
for data in moving:
    data.action = None  # the tracks play
tracks = [t for data in moving for t in data.nla_tracks]
for clip in sorted({t.name for t in tracks}):
    for t in tracks:
        t.mute = t.name != clip
    for frame in range(int(max(s.frame_end for t in tracks if t.name == clip for s in t.strips)) + 1):
        scene.frame_set(frame)
        posed = bpy.context.evaluated_depsgraph_get()
        for o in scene.objects:
            if o.type == "MESH" and o.visible_get():  # shapes of bones are hidden
                frames.setdefault(f"{clip}/{o.name}", []).append(bounds(o.evaluated_get(posed)))
print("CHECK_ENGINES", json.dumps({"version": bpy.app.version_string, "meshes": meshes, "frames": frames}))
