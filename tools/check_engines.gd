extends SceneTree

var meshes = {}
var shapes = 0

func visit(node):
	if node is MeshInstance:
		var box = node.get_aabb()
		var low = box.position
		var high = box.position + box.size
		var material = node.mesh.surface_get_material(0)
		var textures = []
		if material is SpatialMaterial:
			for kind in [SpatialMaterial.TEXTURE_ALBEDO, SpatialMaterial.TEXTURE_NORMAL]:
				var texture = material.get_texture(kind)
				if texture != null:
					textures.append([texture.get_width(), texture.get_height()])
		meshes[node.name] = {
			"bounds": [[low.x, low.y, low.z], [high.x, high.y, high.z]],
			"triangles": node.mesh.get_faces().size() / 3,
			"uv": 1 if node.mesh.surface_get_format(0) & Mesh.ARRAY_FORMAT_TEX_UV else 0,
			"textures": textures,
		}
	if node is CollisionShape and node.get_parent() is StaticBody and node.shape is ConvexPolygonShape:
		shapes += 1
	for child in node.get_children():
		visit(child)

func _init():
	visit(load("res://asset.glb").instance())
	var version = Engine.get_version_info()["string"]
	print("CHECK_ENGINES " + to_json({"version": version, "meshes": meshes, "shapes": shapes}))
	quit()
