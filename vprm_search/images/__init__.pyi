# Each is loaded when it is first used.
from vprm_search.images.messages import ImageIntake as ImageIntake
from vprm_search.images.messages import image_message as image_message
from vprm_search.images.messages import reference_images as reference_images
from vprm_search.images.messages import restore_images as restore_images
from vprm_search.images.normalise import ImageLimits as ImageLimits
from vprm_search.images.normalise import image_from_base64 as image_from_base64
from vprm_search.images.normalise import image_from_data_uri as image_from_data_uri
from vprm_search.images.normalise import normalise_image as normalise_image
from vprm_search.images.normalise import open_rgb as open_rgb
from vprm_search.images.normalise import pixel_digest as pixel_digest
from vprm_search.images.store import DiskImageStore as DiskImageStore
from vprm_search.images.store import ImageStore as ImageStore
from vprm_search.images.store import LangGraphImageStore as LangGraphImageStore
from vprm_search.images.store import MemoryImageStore as MemoryImageStore
